-- Files a task as REVOKED if it still waits, for an agent or for another try; one that was started is marked, for
-- the case that its node is lost.
-- KEYS: record. ARGV: id of the run (or '' for whichever), the time as ISO text, its life in seconds.
-- Answers CANCELLED, or the status that was in the way, and the id of the run; nothing for an unknown task.
local known = redis.call('GET', KEYS[1])
if not known then return false end
local record = cjson.decode(known)
local kwargs = record['kwargs']
local run = type(kwargs) == 'table' and kwargs['run'] or ''
if (record['status'] ~= 'PENDING' and record['status'] ~= 'RETRY') or (ARGV[1] ~= '' and ARGV[1] ~= run) then
    if record['status'] == 'STARTED' and run ~= '' and (ARGV[1] == '' or ARGV[1] == run) then
        record['cancelled'] = ARGV[2]
        redis.call('SET', KEYS[1], cjson.encode(record), 'KEEPTTL')
    end
    return {record['status'], run}
end
local revoked = cjson.encode({
    status = 'REVOKED', task_id = record['task_id'], traceback = cjson.null, date_done = ARGV[2],
    name = record['name'], kwargs = {run = run}, children = cjson.null,
    result = {exc_type = 'TaskRevokedError', exc_message = {'cancelled'}, exc_module = 'celery.exceptions'},
})
redis.call('SET', KEYS[1], revoked, 'EX', ARGV[3])
redis.call('PUBLISH', KEYS[1], revoked)
return {'CANCELLED', run}
