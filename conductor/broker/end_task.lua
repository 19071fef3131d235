-- Files the end of a run unless the run has been given an end already: by a time limit, or by who cancelled it.
-- KEYS: record. ARGV: id of the run, the record, its life in seconds.
-- Answers 1 when filed, else 0.
local known = redis.call('GET', KEYS[1])
if known then
    local record = cjson.decode(known)
    local status = record['status']
    local kwargs = record['kwargs']
    if (status == 'SUCCESS' or status == 'FAILURE' or status == 'REVOKED')
        and type(kwargs) == 'table' and kwargs['run'] == ARGV[1] then
        return 0
    end
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
redis.call('PUBLISH', KEYS[1], ARGV[2])
return 1
