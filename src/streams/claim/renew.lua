-- Renews the lease of entries that are still being worked on.
--
-- Atomically, for each entry: if it is still pending with this consumer and delivery count, its idle
-- time starts again from zero; the delivery count stays. An entry that someone else took over is
-- left alone: a plain XCLAIM would steal it back.
--
-- KEYS[1] the stream
-- ARGV[1] the group
-- ARGV[2] the consumer
-- ARGV[3..] for each entry: its id, its delivery count
-- Returns the positions, from 1, of the entries that are no longer this consumer's
-- Cost    O(k log n) for k entries asked for and n pending
local stream, group, me = KEYS[1], ARGV[1], ARGV[2]
local lost = {}
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
  local mine = pending and pending[2] == me and pending[4] == tonumber(ARGV[i + 1])
  if not (mine and redis.call('XCLAIM', stream, group, me, 0, id, 'JUSTID')[1]) then
    lost[#lost + 1] = (i - 1) / 2
  end
end
return lost
