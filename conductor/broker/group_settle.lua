-- Ends a member's claim on a message, unless it has lost it.
-- KEYS: the queue; held; deadlines; later. ARGV: the claim; "done", "later", "back" or "note"; for all but done
-- the message as it is to be kept; for later the seconds to wait. Answers 1, or 0 when it was not the member's.
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then return 0 end
if ARGV[2] == 'note' then
    redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
    return 1
end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
if ARGV[2] == 'later' then
    local clock = redis.call('TIME')
    redis.call('ZADD', KEYS[4], clock[1] + clock[2] / 1000000 + ARGV[4], ARGV[3])
elseif ARGV[2] == 'back' then
    redis.call('RPUSH', KEYS[1], ARGV[3])
end
if ARGV[2] ~= 'done' then redis.call('PUBLISH', KEYS[1], '') end
return 1
