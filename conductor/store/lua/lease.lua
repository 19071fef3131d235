-- Acquire, renew or release a lease, which is a string that holds its owner and expires with it.
-- KEYS: the lease. ARGV: what to do, the owner, milliseconds.
-- Returns 1, or 0 where another owner, or nobody, is in the way.
local holder = redis.call('GET', KEYS[1])
if ARGV[1] == 'acquire' and not holder then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
if holder ~= ARGV[2] then
  return 0
end
if ARGV[1] == 'release' then
  return redis.call('DEL', KEYS[1])
end
return redis.call('PEXPIRE', KEYS[1], ARGV[3])
