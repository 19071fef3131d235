-- Files a task as STARTED unless this very run of it has ended already: finished before a redelivery, or
-- cancelled while it waited, or cancelled before its node was lost: then it is filed as REVOKED. A run that was
-- superseded by another of the same task does not start either.
-- KEYS: record. ARGV: id of the run, the STARTED record (flat, no lists), its life in seconds.
-- Answers {0, how often the run was started, the node that started it last} when filed, else {1, the record of
-- the end, the node that was lost with a cancelled run or ''}.
local known = redis.call('GET', KEYS[1])
if redis.call('EXISTS', KEYS[1] .. ':superseded:' .. ARGV[1]) == 1 then
    return {1, known or '{}', ''}
end
local attempts, before = 1, ''
if known then
    local record = cjson.decode(known)
    local status = record['status']
    local kwargs = record['kwargs']
    if type(kwargs) == 'table' and kwargs['run'] == ARGV[1] then
        if status == 'SUCCESS' or status == 'FAILURE' or status == 'REVOKED' then
            return {1, known, ''}
        end
        if record['cancelled'] then
            local revoked = cjson.encode({
                status = 'REVOKED', task_id = record['task_id'], traceback = cjson.null,
                date_done = record['cancelled'], name = record['name'], kwargs = kwargs, children = cjson.null,
                worker = record['worker'],
                result = {exc_type = 'TaskRevokedError', exc_message = {'cancelled'},
                    exc_module = 'celery.exceptions'},
            })
            redis.call('SET', KEYS[1], revoked, 'EX', ARGV[3])
            redis.call('PUBLISH', KEYS[1], revoked)
            return {1, revoked, record['worker'] or ''}
        end
        attempts = (tonumber(record['attempts']) or 0) + 1
        before = record['worker'] or ''
    end
end
local started = cjson.decode(ARGV[2])
started['attempts'] = attempts
local text = cjson.encode(started)
redis.call('SET', KEYS[1], text, 'EX', ARGV[3])
redis.call('PUBLISH', KEYS[1], text)
return {0, attempts, before}
