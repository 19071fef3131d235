-- Files a task as PENDING before it is sent, unless an earlier run of it has not ended. Notes an agent that
-- nobody has ever seen.
-- KEYS: record, and three of note_awaited. ARGV: the PENDING record, its life in seconds, the agent, seconds to
-- wait for it.
-- Answers nothing when filed, else the record that is in the way.
local known = redis.call('GET', KEYS[1])
-- Who lost the connection before the answer asks once more with the same record.
if known and known ~= ARGV[1] then
    local status = cjson.decode(known)['status']
    if status ~= 'SUCCESS' and status ~= 'FAILURE' and status ~= 'REVOKED' then
        return known
    end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
note_awaited(KEYS[2], KEYS[3], KEYS[4], ARGV[3], ARGV[4])
return false
