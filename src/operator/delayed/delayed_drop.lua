-- Takes events out of a delay queue for good, and tells so.
--
-- Atomically with the fact `operator.dropped`. What marks the id of an event that was published for later goes with it:
-- the id may be published again. Repeating a call takes nothing out twice and tells nothing.
--
-- KEYS[1]  the delay queue
-- KEYS[2..] for each event the key that marks its id; then the broadcast, unless it lies in another slot
-- ARGV[1]  the run that the call belongs to
-- ARGV[2]  who drops them
-- ARGV[3..] for each: its token, the member
-- Returns  for each 1 if it was there, else 0
-- Cost     O(members * log n)
local done, told = {}, {}
for i = 3, #ARGV, 2 do
  local due = redis.call('ZSCORE', KEYS[1], ARGV[i + 1])
  local mark = KEYS[2 + #done]
  done[#done + 1] = due and 1 or 0
  if due then
    redis.call('ZREM', KEYS[1], ARGV[i + 1])
    if redis.call('TYPE', mark).ok == 'string' and redis.call('GET', mark) == string.format('%.0f', due) then
      redis.call('DEL', mark)
    end
    told[#told + 1] = ARGV[i]
  end
end
local broadcast = KEYS[2 + #done]
if broadcast and #told > 0 then
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('XADD', broadcast, '*', 'type', 'operator.dropped', 'source', ARGV[2], 'time', now, 'data',
    cmsgpack.pack({ run = ARGV[1], by = ARGV[2], from = 'delayed', stream = KEYS[1], count = #told, entries = told }))
end
return done
