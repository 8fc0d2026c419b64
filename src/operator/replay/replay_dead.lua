-- Publishes dead letters again and takes them out of the dead letters.
--
-- Atomically for each entry: only if it is still a dead letter, the event enters its stream and the
-- letter goes. So an event is in one of the two at any time, and repeating a call moves nothing
-- twice. What was moved is told as `operator.replayed` in the same step.
--
-- KEYS[1]  the dead-letter stream
-- KEYS[2]  the events stream
-- KEYS[3]  the broadcast, unless it lies in another slot
-- ARGV[1]  the run that the call belongs to
-- ARGV[2]  who replays
-- ARGV[3..] for each entry: its id, the number of words, the names and values of the event's fields
-- Returns  {error, then for each entry its id as an event}: '' for one that was no dead letter any
--          more. After an error (empty: none) nothing more was moved.
-- Cost     O(entries)
local answer, moved, at = { '' }, {}, 3
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'none' and kind ~= 'stream' then
  return { 'WRONGTYPE ' .. KEYS[2] .. ' holds a ' .. kind }
end
while at <= #ARGV do
  local id, words = ARGV[at], tonumber(ARGV[at + 1])
  local added = ''
  if #redis.call('XRANGE', KEYS[1], id, id) > 0 then
    added = redis.pcall('XADD', KEYS[2], '*', unpack(ARGV, at + 2, at + 1 + words))
    if type(added) == 'table' and added.err then
      answer[1] = added.err
      break
    end
    redis.call('XDEL', KEYS[1], id)
    moved[#moved + 1] = id
  end
  answer[#answer + 1] = added
  at = at + 2 + words
end
if KEYS[3] and #moved > 0 then
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('XADD', KEYS[3], '*', 'type', 'operator.replayed', 'source', ARGV[2], 'time', now, 'data',
    cmsgpack.pack({ run = ARGV[1], by = ARGV[2], from = 'dead', stream = KEYS[1], to = KEYS[2],
      count = #moved, entries = moved }))
end
return answer
