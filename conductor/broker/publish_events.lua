-- Publishes a batch, and puts each event into the queues of the groups that share its channel.
-- KEYS: the registry of groups. ARGV, three for each message: its topic, its channel ("" unless it is an event),
-- its envelope. Answers the refused ones: index (from 1) and reason, one after the other.
local function matcher(pattern)
    local parts, from = {}, 1
    while true do
        local star = string.find(pattern, '*', from, true)
        parts[#parts + 1] = string.sub(pattern, from, star and star - 1)
        if not star then break end
        from = star + 1
    end
    -- In linear time, as conductor.core.channels.PatternMatcher.
    return function(channel)
        local head, tail = parts[1], parts[#parts]
        local position, last = #head + 1, #channel - #tail
        if last < #head or string.sub(channel, 1, #head) ~= head or string.sub(channel, last + 1) ~= tail then
            return false
        end
        for number = 2, #parts - 1 do
            local _, found = string.find(channel, parts[number], position, true)
            if (found or last + 1) > last then return false end
            position = math.max(position, found + 1)
        end
        return true
    end
end

local exact, patterns, queues_of = {}, {}, {}
local registry = redis.call('HGETALL', KEYS[1])
for i = 1, #registry, 2 do
    local queue, pattern = registry[i], registry[i + 1]
    if string.find(pattern, '*', 1, true) then
        patterns[#patterns + 1] = {queue, matcher(pattern)}
    else
        exact[pattern] = exact[pattern] or {}
        table.insert(exact[pattern], queue)
    end
end

local function find_queues(channel)
    local found = {}
    for _, queue in ipairs(exact[channel] or {}) do found[#found + 1] = queue end
    for _, entry in ipairs(patterns) do
        if entry[2](channel) then found[#found + 1] = entry[1] end
    end
    queues_of[channel] = found
    return found
end

local refused, fed = {}, {}
for i = 1, #ARGV, 3 do
    local channel, problem = ARGV[i + 1], nil
    if channel ~= '' and #registry > 0 then
        for _, queue in ipairs(queues_of[channel] or find_queues(channel)) do
            local pushed = redis.pcall('LPUSH', queue, ARGV[i + 2])
            if type(pushed) == 'table' and pushed.err then problem = pushed.err else fed[queue] = true end
        end
    end
    if not problem then
        local published = redis.pcall('PUBLISH', ARGV[i], ARGV[i + 2])
        problem = type(published) == 'table' and published.err
    end
    if problem then
        refused[#refused + 1] = (i + 2) / 3
        refused[#refused + 1] = problem
    end
end
-- Tells members that wait, on a PUB/SUB channel with the name of the queue.
for queue in pairs(fed) do redis.pcall('PUBLISH', queue, '') end
return refused
