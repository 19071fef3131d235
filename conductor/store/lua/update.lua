-- Change some fields of an entity.
-- KEYS: ..., the entity. ARGV: id, time to live, the number of fields to set, field, value, ..., then field,
-- step, ... to increment.
-- Returns the new version, nil where there is no entity.

local key = KEYS[4]
local id, ttl, count = ARGV[1], ARGV[2], tonumber(ARGV[3])

local old = redis.call('HMGET', key, '_version', unpack(FILTERS))
if not old[1] and redis.call('EXISTS', key) == 0 then
  return false
end

local sets = {unpack(ARGV, 4, 3 + 2 * count)}
for i = 4 + 2 * count, #ARGV, 2 do
  local text = redis.call('HGET', key, ARGV[i])
  if not text or not string.match(text, '^%d+$') then
    return redis.error_reply('DAMAGED ' .. ARGV[i])
  end
  local total = tonumber(text) + tonumber(ARGV[i + 1])
  if total < 0 then
    return redis.error_reply('NEGATIVE ' .. ARGV[i])
  end
  sets[#sets + 1] = ARGV[i]
  sets[#sets + 1] = string.format('%.0f', total)
end

local version = next_version(old[1])
redis.call('HSET', key, '_version', version, unpack(sets))

local values = {}
for i = 1, #sets, 2 do
  values[sets[i]] = sets[i + 1]
end
for i, name in ipairs(FILTERS) do
  local new = values[name]
  if new and new ~= old[i + 1] then
    if old[i + 1] then
      redis.call('ZREM', filter_index(name, old[i + 1]), id)
    end
    redis.call('ZADD', filter_index(name, new), redis.call('ZSCORE', INDEX, id) or 0, id)
  end
end
keep(key, id, ttl)

if is_watched() then
  local names = fields()
  local all = redis.call('HMGET', key, unpack(names))
  for i, name in ipairs(names) do
    all[i] = '"' .. name .. '":' .. (all[i] or 'null')
  end
  redis.call('PUBLISH', CHANNEL, 'S ' .. version .. ' {' .. table.concat(all, ',') .. '}')
end
return version
