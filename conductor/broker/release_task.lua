-- Notes that a run was ended here in order to be delivered again, which is no fault of the task's.
-- KEYS: record. ARGV: id of the run.
local known = redis.call('GET', KEYS[1])
if not known then return 0 end
local record = cjson.decode(known)
if record['status'] ~= 'STARTED' or type(record['kwargs']) ~= 'table' or record['kwargs']['run'] ~= ARGV[1] then
    return 0
end
record['released'] = true
redis.call('SET', KEYS[1], cjson.encode(record), 'KEEPTTL')
return 1
