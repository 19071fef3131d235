-- Files a task as PENDING for the replay of its dead letter, unless another run of it has not ended. Notes
-- an agent that nobody has ever seen. The record keeps who reopened it and has not taken that back, and what was
-- there before the first of them.
-- KEYS: record, and three of note_awaited. ARGV: the PENDING record, its life in seconds, id of the replayed run,
-- the agent, seconds to wait for it, a mark of who reopens it.
-- Answers {'opened', ''}, or what was in the way: {'sent', status} when this very run has been started before,
-- {'busy', status} for another run.
local known = redis.call('GET', KEYS[1])
local pending = cjson.decode(ARGV[1])
pending['before'], pending['reopened_by'] = known or '', {ARGV[6]}
if known then
    local record = cjson.decode(known)
    local status = record['status']
    local kwargs = record['kwargs']
    local ours = type(kwargs) == 'table' and kwargs['run'] == ARGV[3]
    if ours and status ~= 'PENDING' then return {'sent', status} end
    if not ours and status ~= 'SUCCESS' and status ~= 'FAILURE' and status ~= 'REVOKED' then
        return {'busy', status}
    end
    if ours and record['reopened_by'] then
        pending['before'], pending['reopened_by'] = record['before'], record['reopened_by']
        table.insert(pending['reopened_by'], ARGV[6])
    end
end
local text = cjson.encode(pending)
redis.call('SET', KEYS[1], text, 'EX', ARGV[2])
redis.call('PUBLISH', KEYS[1], text)
note_awaited(KEYS[2], KEYS[3], KEYS[4], ARGV[4], ARGV[5])
return {'opened', ''}
