-- Gives a member the next message of its group, and notes until when it is the member's.
-- KEYS: the queue; held, a hash of what members have; deadlines of that; later, messages that wait for a retry.
-- ARGV: the claim by which the member will know it, seconds until the claim ends unless it is touched.
-- Answers {message, 1 if a member lost it else 0}, or the milliseconds until there may be one, -1 for unknown.
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local message, lost = nil, 0
local abandoned = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, 1)[1]
if abandoned then
    message, lost = redis.call('HGET', KEYS[2], abandoned), 1
    redis.call('HDEL', KEYS[2], abandoned)
    redis.call('ZREM', KEYS[3], abandoned)
end
if not message then
    lost = 0
    message = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, 1)[1]
    if message then redis.call('ZREM', KEYS[4], message) else message = redis.call('RPOP', KEYS[1]) end
end
if message then
    redis.call('HSET', KEYS[2], ARGV[1], message)
    redis.call('ZADD', KEYS[3], now + ARGV[2], ARGV[1])
    return {message, lost}
end
local due = redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')[2]
return due and math.ceil((due - now) * 1000) or -1
