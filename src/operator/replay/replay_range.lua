-- Publishes copies of entries of a stream.
--
-- Atomically for each entry: only if it was not copied within the window, the copy enters the stream
-- and a marker remembers that. So a run that was interrupted can be repeated, and repeating a call
-- copies nothing twice. What was copied is told as `operator.replayed` in the same step.
--
-- KEYS[1]   the stream
-- KEYS[2..] the marker of each entry, then the broadcast, unless it lies in another slot
-- ARGV[1]   the run that the call belongs to
-- ARGV[2]   who replays
-- ARGV[3]   how long a marker lives, in milliseconds
-- ARGV[4]   1: copy what was copied already (by another run)
-- ARGV[5]   the number of entries, then for each: its id, the number of words, the names and values
--           of the copy's fields
-- Returns   {error, then for each entry the id of its copy}: '' for one that was copied already.
--           After an error (empty: none) nothing more was copied.
-- Cost      O(entries)
local stream, count = KEYS[1], tonumber(ARGV[5])
local answer, moved, at = { '' }, {}, 6
for number = 1, count do
  local id, words, marker = ARGV[at], tonumber(ARGV[at + 1]), KEYS[1 + number]
  local by = redis.call('GET', marker)
  local added = ''
  if not by or (ARGV[4] == '1' and by ~= ARGV[1]) then
    added = redis.pcall('XADD', stream, '*', unpack(ARGV, at + 2, at + 1 + words))
    if type(added) == 'table' and added.err then
      answer[1] = added.err
      break
    end
    redis.call('SET', marker, ARGV[1], 'PX', ARGV[3])
    moved[#moved + 1] = id
  end
  answer[#answer + 1] = added
  at = at + 2 + words
end
local broadcast = KEYS[2 + count]
if broadcast and #moved > 0 then
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('XADD', broadcast, '*', 'type', 'operator.replayed', 'source', ARGV[2], 'time', now, 'data',
    cmsgpack.pack({ run = ARGV[1], by = ARGV[2], from = 'range', stream = stream, to = stream,
      count = #moved, entries = moved }))
end
return answer
