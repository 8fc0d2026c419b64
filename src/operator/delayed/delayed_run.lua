-- Publishes events at once that wait in a delay queue, and tells so.
--
-- Atomically for each: only if it still waits, the event leaves the queue and enters its stream. So it is in one
-- of the two at any time, and repeating a call publishes nothing twice. A field that asks a worker to wait is taken
-- off. What was published is told as `operator.replayed` in the same step.
--
-- KEYS[1]  the delay queue
-- KEYS[2]  its events stream
-- KEYS[3]  the broadcast, unless it lies in another slot
-- ARGV[1]  the run that the call belongs to
-- ARGV[2]  who does it
-- ARGV[3..] the members
-- Returns  {error, then for each member its id as an event}: '' for one that waits no more, or is no event.
--          After an error (empty: none) nothing more was published.
-- Cost     O(members * log n)
local answer, told = { '' }, {}
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'none' and kind ~= 'stream' then
  return { 'WRONGTYPE ' .. KEYS[2] .. ' holds a ' .. kind }
end
for i = 3, #ARGV do
  local member, added = ARGV[i], ''
  if is_event(member) and redis.call('ZSCORE', KEYS[1], member) then
    local parts, words = cmsgpack.unpack(member), {}
    for at = 2, #parts, 2 do
      if parts[at] ~= 'notbefore' then
        words[#words + 1] = parts[at]
        words[#words + 1] = parts[at + 1]
      end
    end
    added = redis.pcall('XADD', KEYS[2], '*', unpack(words))
    if type(added) == 'table' and added.err then
      answer[1] = added.err
      break
    end
    redis.call('ZREM', KEYS[1], member)
    told[#told + 1] = parts[1]
  end
  answer[#answer + 1] = added
end
if KEYS[3] and #told > 0 then
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('XADD', KEYS[3], '*', 'type', 'operator.replayed', 'source', ARGV[2], 'time', now, 'data',
    cmsgpack.pack({ run = ARGV[1], by = ARGV[2], from = 'delayed', stream = KEYS[1], to = KEYS[2],
      count = #told, entries = told }))
end
return answer
