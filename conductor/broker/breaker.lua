-- A circuit breaker that processes share: a hash that does not exist while all is well.
-- failures: how many in a row, while it is closed. opened_at: milliseconds since 1970, while it is not.
-- successes: probes that went well, only while it is half open. probe:<id>: until when that probe may take.
-- rules: {failure threshold, milliseconds to recover, success threshold, milliseconds that a probe may take}.

local function breaker_now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function breaker_probes(key, now)
  local fields, alive = redis.call('HGETALL', key), {}
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 6) == 'probe:' then
      if tonumber(fields[i + 1]) > now then
        alive[#alive + 1] = fields[i]
      else
        redis.call('HDEL', key, fields[i])
      end
    end
  end
  return alive
end

local function breaker_lets_through(key, id, rules)
  local opened_at = redis.call('HGET', key, 'opened_at')
  if not opened_at then return true end
  local now = breaker_now()
  if redis.call('HEXISTS', key, 'successes') == 0 then
    if now - opened_at < tonumber(rules[2]) then return false end
    redis.call('HSET', key, 'successes', 0)
  end
  local under_way = #breaker_probes(key, now)
  if redis.call('HEXISTS', key, 'probe:' .. id) == 0 then
    if redis.call('HGET', key, 'successes') + under_way >= tonumber(rules[3]) then return false end
  end
  redis.call('HSET', key, 'probe:' .. id, string.format('%.0f', now + rules[4]))
  return true
end

local function breaker_succeeded(key, id, rules)
  if redis.call('HEXISTS', key, 'opened_at') == 0 then
    redis.call('DEL', key)
  elseif redis.call('HDEL', key, 'probe:' .. id) == 1
      and redis.call('HINCRBY', key, 'successes', 1) >= tonumber(rules[3]) then
    redis.call('DEL', key)
  end
end

-- Answers true if this failure opened it.
local function breaker_failed(key, id, rules)
  local opened = false
  if redis.call('HEXISTS', key, 'opened_at') == 1 then
    opened = redis.call('HDEL', key, 'probe:' .. id) == 1
  else
    opened = redis.call('HINCRBY', key, 'failures', 1) >= tonumber(rules[1])
  end
  if opened then
    redis.call('DEL', key)
    redis.call('HSET', key, 'opened_at', string.format('%.0f', breaker_now()))
  end
  redis.call('PEXPIRE', key, string.format('%.0f', math.max(86400000, 10 * rules[2])))
  return opened
end

-- Nothing is known of how it went: the probe is taken back.
local function breaker_forget(key, id)
  redis.call('HDEL', key, 'probe:' .. id)
end
