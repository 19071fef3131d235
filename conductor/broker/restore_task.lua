-- Takes back what reopen_task did, unless the record was changed since.
-- KEYS: record. ARGV: the PENDING record, the record before or '', its life in seconds.
-- Answers 1 when it was taken back, else 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then
    redis.call('DEL', KEYS[1])
else
    redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
end
return 1
