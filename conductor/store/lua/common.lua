-- What every script starts with, after the constants of its kind (FILTERS, PARTS, WATCHED, fields and
-- filter_values, which are functions because making a table costs each run of a script a microsecond).
-- KEYS: the index of the kind (score: microseconds since 1970 of the entity's birth), the index of what expires
-- (score: milliseconds since 1970), the channel of changes, then what the script itself says.
-- A hash holds one JSON value per field, and `_version`, which grows with every write.

local INDEX, EXPIRING, CHANNEL = KEYS[1], KEYS[2], KEYS[3]

local function microseconds()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- The first one is the clock's, so that what is deleted and made again never gets a version it had before.
local function next_version(old)
  local before = old and tonumber(old)
  return string.format('%.0f', before and before + 1 or microseconds())
end

local function filter_index(name, json)
  return INDEX .. ':' .. name .. ':' .. string.sub(json, 2, -2)
end

local function forget(id)
  redis.call('ZREM', INDEX, id)
  redis.call('ZREM', EXPIRING, id)
  for name, values in pairs(filter_values()) do
    for _, value in ipairs(values) do
      redis.call('ZREM', INDEX .. ':' .. name .. ':' .. value, id)
    end
  end
end

local function is_watched()
  return WATCHED and redis.call('PUBSUB', 'NUMSUB', CHANNEL)[2] > 0
end

local function announce_deletion(id, version)
  if is_watched() then
    redis.call('PUBLISH', CHANNEL, 'D ' .. version .. ' ' .. id)
  end
end

-- Take an entity whose key expired, or was deleted by hand, out of the indexes.
local function forget_if_gone(key, id)
  if redis.call('EXISTS', key) == 0 then
    forget(id)
    announce_deletion(id, next_version())
    return true
  end
  return false
end

-- Give the entity its time to live in milliseconds ('': for ever), and tidy up after a few that are over.
local function keep(key, id, ttl)
  if ttl == '' then
    if redis.call('PERSIST', key) == 1 then
      redis.call('ZREM', EXPIRING, id)
    end
    return
  end
  local now = math.floor(microseconds() / 1000)
  redis.call('PEXPIRE', key, ttl)
  redis.call('ZADD', EXPIRING, now + ttl, id)
  local prefix = string.sub(key, 1, #key - #id)
  for _, due in ipairs(redis.call('ZRANGEBYSCORE', EXPIRING, '-inf', now, 'LIMIT', 0, 8)) do
    if not forget_if_gone(prefix .. due, due) and redis.call('PTTL', prefix .. due) == -1 then
      redis.call('ZREM', EXPIRING, due)
    end
  end
end
