-- Notes that entries wait in their place for their next try.
--
-- Atomically, for each entry: if it is still pending with this consumer and delivery count, what is known of its next
-- try is noted under its id, in the place of what was. The entry stays pending: those of its subject that come later
-- wait behind it. Called again it notes the same.
--
-- KEYS[1]  the stream
-- KEYS[2]  what waits: a hash, by entry
-- ARGV[1]  the group
-- ARGV[2]  the consumer
-- ARGV[3..] for each entry: its id, its delivery count, what is noted
-- Returns  the positions, from 1, of the entries that are no longer this consumer's
-- Cost     O(k log n) for k entries asked for and n pending
local stream, held, group, me = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local lost = {}
for i = 3, #ARGV, 3 do
  local id = ARGV[i]
  local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
  if pending and pending[2] == me and pending[4] == tonumber(ARGV[i + 1]) then
    redis.call('HSET', held, id, ARGV[i + 2])
  else
    lost[#lost + 1] = i / 3
  end
end
return lost
