-- Notes the name of an agent that nobody has ever seen, so that what is sent to it does not wait for it for ever.
-- state: of the agent; awaited: agents that are waited for; awaited_at: when each was last sent something;
-- agent: its id, '' for any of a type; seconds: how long to wait for it.
local function note_awaited(state, awaited, awaited_at, agent, seconds)
    if agent == '' or redis.call('EXISTS', state) == 1 then return end
    local now = redis.call('TIME')[1]
    redis.call('ZADD', awaited, 'NX', now + seconds, agent)
    redis.call('HSET', awaited_at, agent, now)
end
