-- Changes events that wait in a delay queue: what they hold, when they are due, or both. Tells so.
--
-- Atomically for each: only if it still waits as it was seen. Repeating a call changes nothing, since the old member
-- is gone; one that only moves an event to another time moves it there again. Told as `operator.changed` in the same
-- step. What marks the id of an event that was published for later moves with its due time.
--
-- KEYS[1]  the delay queue
-- KEYS[2..] for each event the key that marks its id; then the broadcast, unless it lies in another slot
-- ARGV[1]  the run that the call belongs to
-- ARGV[2]  who does it
-- ARGV[3]  when they are due (ms); empty to leave it as it is
-- ARGV[4..] for each: its token, the member as it is, the member as it will be
-- Returns  for each 1 if it was there, else 0
-- Cost     O(members * log n)
local done, told = {}, {}
for i = 4, #ARGV, 3 do
  local due = redis.call('ZSCORE', KEYS[1], ARGV[i + 1])
  local mark = KEYS[2 + #done]
  done[#done + 1] = due and 1 or 0
  if due then
    redis.call('ZREM', KEYS[1], ARGV[i + 1])
    redis.call('ZADD', KEYS[1], ARGV[3] ~= '' and ARGV[3] or due, ARGV[i + 2])
    if ARGV[3] ~= '' and redis.call('TYPE', mark).ok == 'string'
      and redis.call('GET', mark) == string.format('%.0f', due) then
      local lasts = redis.call('PTTL', mark) + ARGV[3] - due
      redis.call('SET', mark, ARGV[3], 'PX', string.format('%.0f', math.max(1, lasts)))
    end
    told[#told + 1] = ARGV[i]
  end
end
local broadcast = KEYS[2 + #done]
if broadcast and #told > 0 then
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  local fact = { run = ARGV[1], by = ARGV[2], from = 'delayed', stream = KEYS[1], count = #told, entries = told }
  if ARGV[3] ~= '' then fact.due = tonumber(ARGV[3]) end
  redis.call('XADD', broadcast, '*', 'type', 'operator.changed', 'source', ARGV[2], 'time', now, 'data',
    cmsgpack.pack(fact))
end
return done
