-- Save an entity.
-- KEYS: ..., the entity. ARGV: id, score, time to live, the version it must have ('': any, 0: none), the version
-- that the fields are a change of ('': they are the whole), a value per filter, the number of fields to remove,
-- these, then field, value, field, value, ...
-- Returns the new version.

local STEP = 4000

local key = KEYS[4]
local id, score, ttl, expected, base = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local old = redis.call('HMGET', key, '_version', unpack(FILTERS))
if expected ~= '' and expected ~= (old[1] or '0') then
  return redis.error_reply('CONFLICT ' .. (old[1] or '0'))
end
if base ~= '' and base ~= old[1] then
  return redis.error_reply('STALE ' .. (old[1] or '0'))
end

local at = 5 + #FILTERS
local removed = tonumber(ARGV[at + 1])
at = at + 1
if PARTS and base == '' then
  redis.call('DEL', key)
end
for i = at + 1, at + removed do
  redis.call('HDEL', key, ARGV[i])
end
at = at + removed

local version = next_version(old[1])
redis.call('HSET', key, '_version', version, unpack(ARGV, at + 1, math.min(at + STEP, #ARGV)))
for from = at + STEP + 1, #ARGV, STEP do
  redis.call('HSET', key, unpack(ARGV, from, math.min(from + STEP - 1, #ARGV)))
end

local moved = redis.call('ZADD', INDEX, 'CH', score, id) == 1
if not moved and not old[1] then
  -- It is in the index but was not there: it expired, with filters that nobody remembers.
  forget(id)
  redis.call('ZADD', INDEX, score, id)
end
for i, name in ipairs(FILTERS) do
  local before, new = old[i + 1], ARGV[5 + i]
  if before and before ~= new then
    redis.call('ZREM', filter_index(name, before), id)
  end
  if moved or before ~= new then
    redis.call('ZADD', filter_index(name, new), score, id)
  end
end
keep(key, id, ttl)

if is_watched() then
  local pairs_of_json = {}
  for i = at + 1, #ARGV, 2 do
    pairs_of_json[#pairs_of_json + 1] = '"' .. ARGV[i] .. '":' .. ARGV[i + 1]
  end
  redis.call('PUBLISH', CHANNEL, 'S ' .. version .. ' {' .. table.concat(pairs_of_json, ',') .. '}')
end
return version
