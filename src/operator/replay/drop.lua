-- Deletes dead letters for good, and tells so.
--
-- Atomically with the fact `operator.dropped`. Repeating a call deletes nothing twice and tells
-- nothing.
--
-- KEYS[1]  the dead-letter stream
-- KEYS[2]  the broadcast, unless it lies in another slot
-- ARGV[1]  the run that the call belongs to
-- ARGV[2]  who drops them
-- ARGV[3..] the entries' ids
-- Returns  for each id 1 if it was there, else 0
-- Cost     O(entries)
local done, dropped = {}, {}
for i = 3, #ARGV do
  local deleted = redis.call('XDEL', KEYS[1], ARGV[i])
  done[#done + 1] = deleted
  if deleted == 1 then
    dropped[#dropped + 1] = ARGV[i]
  end
end
if KEYS[2] and #dropped > 0 then
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('XADD', KEYS[2], '*', 'type', 'operator.dropped', 'source', ARGV[2], 'time', now, 'data',
    cmsgpack.pack({ run = ARGV[1], by = ARGV[2], stream = KEYS[1], count = #dropped, entries = dropped }))
end
return done
