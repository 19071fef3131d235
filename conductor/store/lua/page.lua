-- Find one page of ids, newest first.
-- KEYS: ..., the indexes that an id must be in. ARGV: offset, limit (-1: all).
-- Returns the ids.

local STEP = 512

local offset, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
if #KEYS == 4 then
  return redis.call('ZREVRANGE', KEYS[4], offset, limit < 0 and -1 or offset + limit - 1)
end

local function in_all(id)
  for i = 5, #KEYS do
    if not redis.call('ZSCORE', KEYS[i], id) then
      return false
    end
  end
  return true
end

local found, from = {}, 0
while true do
  local ids = redis.call('ZREVRANGE', KEYS[4], from, from + STEP - 1)
  for _, id in ipairs(ids) do
    if in_all(id) then
      if offset > 0 then
        offset = offset - 1
      else
        found[#found + 1] = id
        if #found == limit then
          return found
        end
      end
    end
  end
  if #ids < STEP then
    return found
  end
  from = from + STEP
end
