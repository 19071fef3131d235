-- Take entities that are gone out of the indexes.
-- KEYS: ... ARGV: what the keys of entities start with, then ids.
-- Returns how many were gone.

local gone = 0
for i = 2, #ARGV do
  if forget_if_gone(ARGV[1] .. ARGV[i], ARGV[i]) then
    gone = gone + 1
  end
end
return gone
