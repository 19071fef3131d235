-- Gives a task that waits another run, whose message is still to be sent: whoever filed the old run may have died
-- before its message was sent. Should that message exist, no node starts it any more.
-- KEYS: record. ARGV: id of the old run, the PENDING record of the new one, its life in seconds.
-- Answers 1, or 0 where the task does not wait or is of another run.
local known = redis.call('GET', KEYS[1])
if not known then return 0 end
local record = cjson.decode(known)
local kwargs = record['kwargs']
if record['status'] ~= 'PENDING' or type(kwargs) ~= 'table' or kwargs['run'] ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1] .. ':superseded:' .. ARGV[1], '1', 'EX', ARGV[3])
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
