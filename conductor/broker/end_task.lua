-- Files the end of a run, or that it is to be retried, unless the run has been given an end already: by a time
-- limit, or by who cancelled it.
-- KEYS: record, breaker. ARGV: id of the run, the record, its life in seconds, the task's id, how it went for the
-- breaker (success, failure, forget or ''), the rules of the breaker, whether to tell who waits (1 or 0).
-- Answers {1 when filed, else 0; 1 when this opened the breaker, else 0}.
local known = redis.call('GET', KEYS[1])
local mine = true
if known then
    local record = cjson.decode(known)
    local status = record['status']
    local kwargs = record['kwargs']
    if (status == 'SUCCESS' or status == 'FAILURE' or status == 'REVOKED')
        and type(kwargs) == 'table' and kwargs['run'] == ARGV[1] then
        mine = false
    end
end
if not mine then
    breaker_forget(KEYS[2], ARGV[4])
    return {0, 0}
end
local opened, rules = false, {ARGV[6], ARGV[7], ARGV[8], ARGV[9]}
if ARGV[5] == 'success' then
    breaker_succeeded(KEYS[2], ARGV[4], rules)
elseif ARGV[5] == 'failure' then
    opened = breaker_failed(KEYS[2], ARGV[4], rules)
elseif ARGV[5] == 'forget' then
    breaker_forget(KEYS[2], ARGV[4])
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
if ARGV[10] == '1' then redis.call('PUBLISH', KEYS[1], ARGV[2]) end
return {1, opened and 1 or 0}
