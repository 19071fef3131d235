-- Takes a dead letter out of its list and puts what is replayed of it into another, if it is still there.
-- KEYS: list of the dead letters, list to put it into. ARGV: the letter as it is stored, what is replayed.
-- Answers 1 when it was moved, else 0.
if redis.call('LREM', KEYS[1], -1, ARGV[1]) == 0 then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[2])
return 1
