-- Set one field of an entity, an item of one of its parts.
-- KEYS: ..., the entity. ARGV: id, time to live, field, value.
-- Returns the version before and the new one, nil where there is no entity.

local key = KEYS[4]
local before = redis.call('HGET', key, '_version')
if not before then
  return false
end
local version = next_version(before)
redis.call('HSET', key, '_version', version, ARGV[3], ARGV[4])
keep(key, ARGV[1], ARGV[2])
return {before, version}
