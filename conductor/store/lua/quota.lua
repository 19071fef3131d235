-- What tasks take of a quota. A reservation is there for the length of a lease, until it is confirmed, which makes
-- it held, or released. One that nobody confirmed in time is given back, unless Celery's record of the task says
-- that it was started: then whoever sent it died before saying so.
-- KEYS: the reservations (a sorted set of claims by the end of their leases), what is held: the claims of tasks that
-- have not ended as far as anybody looked (a set), those of a period (a sorted set by when they were sent), or for ever a sum.
-- ARGV: operation, how long it lasts (task, period, ever), the claim ("amount run task-id"), the limit, the same with
-- what rounding may add to a sum, the period, the lease, what Celery's records begin with, and the milliseconds that
-- the keys live after a change ('': for ever).
-- Other times are in microseconds. look and reserve return granted (1 or 0), what others have taken, the time after
-- which it would be granted or '', and 1 if it never will be.

local RESERVED, HELD = KEYS[1], KEYS[2]
local operation, lasts, claim = ARGV[1], ARGV[2], ARGV[3]
local limit, ceiling = tonumber(ARGV[4]), tonumber(ARGV[5])
local period, lease = tonumber(ARGV[6]), tonumber(ARGV[7])
local record_prefix, ttl = ARGV[8], ARGV[9]

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function amount_of(one)
  return string.match(one, '^%S+')
end

-- The state of the task in Celery's words, nothing when this run of it is over or was never filed.
local function status_of(one)
  local run, task = string.match(one, '^%S+ (%S+) (.*)$')
  local raw = redis.call('GET', record_prefix .. task)
  if not raw then return nil end
  -- Only the record of an end may hold something that cannot be decoded here, such as a deep result.
  local readable, record = pcall(cjson.decode, raw)
  if not readable or type(record) ~= 'table' then return nil end
  local kwargs = record['kwargs']
  local its = type(kwargs) == 'table' and kwargs['run']
  -- A run may carry the name of its workflow before its own.
  if type(its) == 'string' and its ~= '' and its ~= run and string.sub(its, -#run - 1) ~= ':' .. run then
    return nil
  end
  return record['status']
end

local function has_ended(status)
  return not status or status == 'SUCCESS' or status == 'FAILURE' or status == 'REVOKED'
end

local function live(key)
  if ttl ~= '' then redis.call('PEXPIRE', key, ttl) end
end

local function hold(one)
  redis.call('ZREM', RESERVED, one)
  if lasts == 'task' then
    redis.call('SADD', HELD, one)
  elseif lasts == 'period' then
    redis.call('ZADD', HELD, now, one)
    redis.call('PEXPIRE', HELD, math.ceil(period / 1000) + 1000)
  else
    redis.call('INCRBYFLOAT', HELD, amount_of(one))
    live(HELD)
  end
end

if operation == 'confirm' then
  if redis.call('ZSCORE', RESERVED, claim) then hold(claim) end
  return 1
elseif operation == 'release' then
  redis.call('ZREM', RESERVED, claim)
  if lasts == 'task' then redis.call('SREM', HELD, claim) end
  return 1
end

-- One that waits in a queue, or was filed by somebody who died before sending it, is looked at again next time.
local function settle()
  for _, one in ipairs(redis.call('ZRANGEBYSCORE', RESERVED, '-inf', now)) do
    local status = status_of(one)
    if not status then
      redis.call('ZREM', RESERVED, one)
    elseif status ~= 'PENDING' then
      hold(one)
    end
  end
end

local function drop_ended()
  for _, one in ipairs(redis.call('SMEMBERS', HELD)) do
    if has_ended(status_of(one)) then redis.call('SREM', HELD, one) end
  end
  -- A task may end before anybody confirms it; one that has no record is about to be filed.
  for _, one in ipairs(redis.call('ZRANGE', RESERVED, 0, -1)) do
    local status = status_of(one)
    if status and has_ended(status) then redis.call('ZREM', RESERVED, one) end
  end
end

local function used()
  local sum, reserved = 0, redis.call('ZRANGEBYSCORE', RESERVED, string.format('(%.0f', now), '+inf')
  for _, one in ipairs(reserved) do
    sum = sum + tonumber(amount_of(one))
  end
  if lasts == 'task' then
    return sum + redis.call('SCARD', HELD), #reserved
  elseif lasts == 'period' then
    return sum + redis.call('ZCARD', HELD), #reserved
  end
  return sum + tonumber(redis.call('GET', HELD) or '0'), #reserved
end

-- A reservation may end at any time; only where there is none the next chance is known.
local function retry_after(reserved)
  if lasts ~= 'period' or reserved > 0 then return '' end
  local too_many = redis.call('ZCARD', HELD) + 1 - limit
  if too_many < 1 then return '' end
  local next_to_end = redis.call('ZRANGE', HELD, too_many - 1, too_many - 1, 'WITHSCORES')
  return next_to_end[2] and string.format('%.0f', next_to_end[2] + period - now) or ''
end

local amount = tonumber(amount_of(claim))
settle()
if lasts == 'period' then redis.call('ZREMRANGEBYSCORE', HELD, '-inf', string.format('%.0f', now - period)) end
local sum, reserved = used()
local ends = redis.call('ZSCORE', RESERVED, claim)
if ends and tonumber(ends) > now then
  if operation == 'reserve' then redis.call('ZADD', RESERVED, 'XX', now + lease, claim) end
  return {1, string.format('%.17g', sum - amount), '', 0}
end
if lasts == 'task' and sum + amount > ceiling then
  drop_ended()
  sum, reserved = used()
end
if sum + amount > ceiling then
  local final = lasts == 'ever' and tonumber(redis.call('GET', HELD) or '0') + amount > ceiling
  return {0, string.format('%.17g', sum), retry_after(reserved), final and 1 or 0}
end
if operation == 'reserve' then
  redis.call('ZADD', RESERVED, now + lease, claim)
  live(RESERVED)
end
return {1, string.format('%.17g', sum), '', 0}
