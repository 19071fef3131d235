-- KEYS: breaker. ARGV: what to do, an id for the one who asks, the rules.
-- Answers 1 or 0 (may go on, or: has opened it), for "state" the word.
local what, id, rules = ARGV[1], ARGV[2], {ARGV[3], ARGV[4], ARGV[5], ARGV[6]}
if what == 'ask' then return breaker_lets_through(KEYS[1], id, rules) and 1 or 0 end
if what == 'failure' then return breaker_failed(KEYS[1], id, rules) and 1 or 0 end
if what == 'success' then breaker_succeeded(KEYS[1], id, rules) end
if what == 'forget' then breaker_forget(KEYS[1], id) end
if what == 'state' then
  if redis.call('HEXISTS', KEYS[1], 'opened_at') == 0 then return 'closed' end
  return redis.call('HEXISTS', KEYS[1], 'successes') == 1 and 'half_open' or 'open'
end
return 1
