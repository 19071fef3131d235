-- Delete an entity.
-- KEYS: ..., the entity. ARGV: id.
-- Returns 1, or 0 where there was none.

local before = redis.pcall('HGET', KEYS[4], '_version')
if type(before) == 'table' then
  before = nil -- Not a hash: somebody damaged it, which is no reason to keep it.
end
local deleted = redis.call('UNLINK', KEYS[4])
forget(ARGV[1])
if deleted == 1 then
  announce_deletion(ARGV[1], next_version(before))
end
return deleted
