-- Takes back what reopen_task did, unless the run was started since. Who else reopened the task may have sent it:
-- only the last to take it back restores what was before all of them.
-- KEYS: record. ARGV: the mark of who reopened it, its life in seconds.
-- Answers 1 when it was restored, else 0.
local known = redis.call('GET', KEYS[1])
if not known then return 0 end
local record = cjson.decode(known)
if record['status'] ~= 'PENDING' or not record['reopened_by'] then return 0 end
local others = {}
for _, mark in ipairs(record['reopened_by']) do
    if mark ~= ARGV[1] then others[#others + 1] = mark end
end
if #others == #record['reopened_by'] then return 0 end
if #others > 0 then
    record['reopened_by'] = others
    redis.call('SET', KEYS[1], cjson.encode(record), 'KEEPTTL')
    return 0
end
if record['before'] == '' then
    redis.call('DEL', KEYS[1])
else
    redis.call('SET', KEYS[1], record['before'], 'EX', ARGV[2])
    redis.call('PUBLISH', KEYS[1], record['before'])
end
return 1
