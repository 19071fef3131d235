-- Finds agents that have been waited for long enough, and gives them to the one who asks for a while; or notes that
-- one of them is done with.
-- KEYS: agents that are waited for, when each was last sent something. ARGV: what the keys of agents begin with,
-- seconds that the asker has, the agent that the asker is done with (or ''), seconds that a task may be on its way.
-- Answers names.
local now = tonumber(redis.call('TIME')[1])
local function forget(agent)
  redis.call('ZREM', KEYS[1], agent)
  redis.call('HDEL', KEYS[2], agent)
end
if ARGV[3] ~= '' then
  -- A task that is being sent right now would be missed.
  if now - (redis.call('HGET', KEYS[2], ARGV[3]) or 0) > tonumber(ARGV[4]) then
    forget(ARGV[3])
  else
    redis.call('ZADD', KEYS[1], 'XX', now + ARGV[4], ARGV[3])
  end
  return {}
end
local missing = {}
for _, agent in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 10)) do
  if redis.call('EXISTS', ARGV[1] .. agent) == 1 then
    forget(agent)
  else
    redis.call('ZADD', KEYS[1], 'XX', now + ARGV[2], agent)
    missing[#missing + 1] = agent
  end
end
return missing
