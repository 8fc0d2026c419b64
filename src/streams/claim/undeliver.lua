-- Takes back deliveries of which nothing was begun: they are not counted.
--
-- Atomically, for each entry: if it is still pending with this consumer and delivery count, the count
-- becomes one less; owner and idle time stay as they are. A delivery that someone else took over, or
-- that was taken back already, is left alone. No claim counter is raised, since the consumer itself
-- drops the entry.
--
-- KEYS[1] the stream
-- ARGV[1] the group
-- ARGV[2] the consumer
-- ARGV[3..] for each entry: its id, its delivery count
-- Returns how many were taken back
-- Cost    O(k log n) for k entries asked for and n pending
local stream, group, me = KEYS[1], ARGV[1], ARGV[2]
local back = 0
for i = 3, #ARGV, 2 do
  local id, count = ARGV[i], tonumber(ARGV[i + 1])
  local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
  if count > 0 and pending and pending[2] == me and pending[4] == count then
    local idle = string.format('%d', pending[3])
    local there = redis.call('XCLAIM', stream, group, me, 0, id, 'IDLE', idle, 'RETRYCOUNT', count - 1, 'JUSTID')
    back = back + #there
  end
end
return back
