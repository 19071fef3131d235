-- Takes the next item of the first list that has one, whatever it is, noting at once that somebody works on it.
-- KEYS: lists by falling priority, the hash of unacknowledged messages, their index.
-- ARGV: the time, the tag to note it under, the queue of each list.
-- Answers the number of the list and the item, or nothing: then a connection that has CLIENT TRACKING on is
-- told when one of the lists changes.
local lists = #KEYS - 2
for number = 1, lists do
    local item = redis.call('RPOP', KEYS[number])
    if item then
        local place = '"",' .. cjson.encode(ARGV[2 + number])
        redis.call('HSET', KEYS[lists + 1], ARGV[2], '[' .. item .. ',' .. place .. ']')
        redis.call('ZADD', KEYS[lists + 2], ARGV[1], ARGV[2])
        return {number, item}
    end
end
redis.call('EXISTS', unpack(KEYS, 1, lists))
return false
