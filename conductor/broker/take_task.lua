-- Takes the next message of the first queue that has one, noting at once who works on it.
-- KEYS: lists by falling priority, the hash of unacknowledged messages, their index. ARGV: the time.
-- Answers the number of the list and the message, or nothing.
for number = 1, #KEYS - 2 do
    local message = redis.call('RPOP', KEYS[number])
    if message then
        local readable, decoded = pcall(cjson.decode, message)
        local properties = readable and type(decoded) == 'table' and decoded['properties']
        if type(properties) ~= 'table' or type(properties['delivery_info']) ~= 'table' then
            -- It has to be put aside, which who waits for messages does.
            redis.call('RPUSH', KEYS[number], message)
            return false
        end
        local tag, info = properties['delivery_tag'], properties['delivery_info']
        local from = cjson.encode(info['exchange']) .. ',' .. cjson.encode(info['routing_key'])
        redis.call('HSET', KEYS[#KEYS - 1], tag, '[' .. message .. ',' .. from .. ']')
        redis.call('ZADD', KEYS[#KEYS], ARGV[1], tag)
        return {number, message}
    end
end
return false
