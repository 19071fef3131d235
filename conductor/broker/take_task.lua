-- Takes the next message of the first list that has one, noting at once who works on it.
-- KEYS: lists by falling priority, the hash of unacknowledged messages, their index.
-- ARGV: the time, a tag for what is no message of kombu's, the exchange of the queues, the queue of each list.
-- Answers the number of the list, the tag and the message, or nothing: then a connection that has
-- CLIENT TRACKING on is told when one of the lists changes.
local function base64(text)
    local digits = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/'
    return (text:gsub('..?.?', function(part)
        local first, second, third = part:byte(1, 3)
        local bits, coded = first * 65536 + (second or 0) * 256 + (third or 0), ''
        for shift = 18, 18 - 6 * #part, -6 do
            local digit = math.floor(bits / 2 ^ shift) % 64 + 1
            coded = coded .. digits:sub(digit, digit)
        end
        return coded .. ('='):rep(3 - #part)
    end))
end

local function read(message)
    local readable, decoded = pcall(cjson.decode, message)
    local properties = readable and type(decoded) == 'table' and decoded['properties']
    local info = type(properties) == 'table' and properties['delivery_info']
    local tag = info and properties['delivery_tag']
    if type(info) == 'table' and info['exchange'] and info['routing_key'] and type(tag) == 'string' and tag ~= '' then
        return tag, info
    end
end

local lists = #KEYS - 2
for number = 1, lists do
    local message = redis.call('RPOP', KEYS[number])
    if message then
        local tag, info = read(message)
        if not tag then
            -- Goes on as a message that cannot be decoded.
            tag, info = ARGV[2], {exchange = ARGV[3], routing_key = ARGV[3 + number]}
            message = cjson.encode({
                body = base64(message),
                headers = {},
                ['content-type'] = 'application/octet-stream',
                ['content-encoding'] = 'binary',
                properties = {body_encoding = 'base64', delivery_tag = tag, delivery_info = info},
            })
        end
        local from = cjson.encode(info['exchange']) .. ',' .. cjson.encode(info['routing_key'])
        redis.call('HSET', KEYS[lists + 1], tag, '[' .. message .. ',' .. from .. ']')
        redis.call('ZADD', KEYS[lists + 2], ARGV[1], tag)
        return {number, tag, message}
    end
end
redis.call('EXISTS', unpack(KEYS, 1, lists))
return false
