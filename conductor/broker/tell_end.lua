-- Tells who waits of an end whose dead letter is in its queue now.
-- KEYS: record, which begins with its letter. ARGV: id of the run.
-- Answers 1, or 0 where it was told before or the record is of another run.
local known = redis.call('GET', KEYS[1])
if not known then return 0 end
-- Cut out as text: cjson would make objects of the empty lists in the record.
local text, found = string.gsub(known, '^{"letter": "[^"]*", ', '{', 1)
if found == 0 then return 0 end
local kwargs = cjson.decode(known)['kwargs']
if type(kwargs) ~= 'table' or kwargs['run'] ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], text, 'KEEPTTL')
redis.call('PUBLISH', KEYS[1], text)
return 1
