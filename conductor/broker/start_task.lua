-- Files a task as STARTED unless this very run of it has ended already: finished before a redelivery, or
-- cancelled while it waited, or cancelled before its node was lost: then it is filed as REVOKED. Does not start
-- it either while the breaker is open, nor a run that was superseded by another of the same task, nor, where this
-- is asked, one that another process has started and not given back.
-- KEYS: record, breaker. ARGV: id of the run, the STARTED record (flat, no lists), its life in seconds, how often
-- it was retried, the task's id, the rules of the breaker ('' instead of the first: do not ask it), whether to
-- leave alone what is STARTED (1 or 0).
-- Answers one of
--   {0, how often the run was lost with its process, the node that had it last, retries, first failure or ''}
--   {1, the record of the end ({} if superseded), the node that was lost with a cancelled run or ''}
--   {2, ...}: as 0, but the breaker is open and nothing was filed
--   {3, '', the node that has started it}.
if redis.call('EXISTS', KEYS[1] .. ':superseded:' .. ARGV[1]) == 1 then
    return {1, '{}', ''}
end
local known = redis.call('GET', KEYS[1])
local lost, before, retries, first_failure = 0, '', tonumber(ARGV[4]), ''
if known then
    local record = cjson.decode(known)
    local status = record['status']
    local kwargs = record['kwargs']
    if type(kwargs) == 'table' and kwargs['run'] == ARGV[1] then
        if status == 'SUCCESS' or status == 'FAILURE' or status == 'REVOKED' then
            return {1, known, ''}
        end
        if record['cancelled'] then
            breaker_forget(KEYS[2], ARGV[5])
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
        lost = tonumber(record['lost']) or 0
        retries = math.max(retries, tonumber(record['retries']) or 0)
        first_failure = type(record['first_failure']) == 'string' and record['first_failure'] or ''
        if status == 'STARTED' then
            before = record['worker'] or ''
            if ARGV[10] == '1' and not record['released'] then return {3, '', before} end
            if not record['released'] then lost = lost + 1 end
        end
    end
end
if ARGV[6] ~= '' and not breaker_lets_through(KEYS[2], ARGV[5], {ARGV[6], ARGV[7], ARGV[8], ARGV[9]}) then
    return {2, lost, before, retries, first_failure}
end
local started = cjson.decode(ARGV[2])
started['lost'] = lost
started['retries'] = retries
if first_failure ~= '' then started['first_failure'] = first_failure end
local text = cjson.encode(started)
redis.call('SET', KEYS[1], text, 'EX', ARGV[3])
redis.call('PUBLISH', KEYS[1], text)
return {0, lost, before, retries, first_failure}
