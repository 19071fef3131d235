-- Files a task as PENDING before it is sent, unless an earlier run of it has not ended. Notes the name of an agent
-- that nobody has ever seen, so that the task does not wait for it for ever.
-- KEYS: record, state of the agent, agents that are waited for, when each was last sent something.
-- ARGV: the PENDING record, its life in seconds, the agent ('' for any of a type), seconds to wait for it.
-- Answers nothing when filed, else the record that is in the way.
local known = redis.call('GET', KEYS[1])
if known then
    local status = cjson.decode(known)['status']
    if status ~= 'SUCCESS' and status ~= 'FAILURE' and status ~= 'REVOKED' then
        return known
    end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
if ARGV[3] ~= '' and redis.call('EXISTS', KEYS[2]) == 0 then
    local now = redis.call('TIME')[1]
    redis.call('ZADD', KEYS[3], 'NX', now + ARGV[4], ARGV[3])
    redis.call('HSET', KEYS[4], ARGV[3], now)
end
return false
