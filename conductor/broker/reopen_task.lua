-- Files a task as PENDING for the replay of its dead letter, unless another run of it has not ended. Notes
-- an agent that nobody has ever seen.
-- KEYS: record, and three of note_awaited. ARGV: the PENDING record, its life in seconds, id of the replayed run,
-- the agent, seconds to wait for it.
-- Answers {'opened', the record before or ''}, or what was in the way: {'sent', status} when this very run has
-- been started before, {'busy', status} for another run.
local known = redis.call('GET', KEYS[1])
if known then
    local record = cjson.decode(known)
    local status = record['status']
    local kwargs = record['kwargs']
    local ours = type(kwargs) == 'table' and kwargs['run'] == ARGV[3]
    if ours and status ~= 'PENDING' then return {'sent', status} end
    if not ours and status ~= 'SUCCESS' and status ~= 'FAILURE' and status ~= 'REVOKED' then
        return {'busy', status}
    end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('PUBLISH', KEYS[1], ARGV[1])
note_awaited(KEYS[2], KEYS[3], KEYS[4], ARGV[4], ARGV[5])
return {'opened', known or ''}
