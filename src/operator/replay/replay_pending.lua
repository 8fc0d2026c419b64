-- Publishes pending entries again and takes them from the consumers that hold them.
--
-- Atomically for each entry: only if it is still pending with the owner and the delivery count that
-- the caller saw, and has been idle for long enough, the event enters its stream again and the old
-- delivery is acknowledged. The claim counter of every owner that lost an entry is raised in the same
-- step, so that a commit that the owner has under way finds out (see commit.rs). Repeating a call
-- replays nothing twice. What was replayed is told as `operator.replayed` in the same step.
--
-- KEYS[1]   the stream
-- KEYS[2..] the claim counters of the owners, in the order of their names in ARGV; then the
--           broadcast, unless it lies in another slot
-- ARGV[1]   the run that the call belongs to
-- ARGV[2]   who replays
-- ARGV[3]   the group
-- ARGV[4]   how long a claim counter outlives its last change, in milliseconds
-- ARGV[5]   the number of owners, then their names, then for each entry: its id, the index of its
--           owner (from 1), its delivery count, how long it must have been idle in milliseconds, the
--           number of words, the names and values of the event's fields
-- Returns   {error, then for each entry its id as a new event}: '' for one that is not pending like
--           that any more. After an error (empty: none) nothing more was replayed.
-- Cost      O(k log n) for k entries and n pending
local stream, group, owners = KEYS[1], ARGV[3], tonumber(ARGV[5])
local answer, moved, fenced, at = { '' }, {}, {}, 6 + owners
while at <= #ARGV do
  local id, owner, words = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 4])
  local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
  local added = ''
  if pending and pending[2] == ARGV[5 + owner] and pending[4] == tonumber(ARGV[at + 2])
    and pending[3] >= tonumber(ARGV[at + 3]) then
    added = redis.pcall('XADD', stream, '*', unpack(ARGV, at + 5, at + 4 + words))
    if type(added) == 'table' and added.err then
      answer[1] = added.err
      break
    end
    redis.call('XACK', stream, group, id)
    fenced[owner] = true
    moved[#moved + 1] = id
  end
  answer[#answer + 1] = added
  at = at + 5 + words
end
for owner in pairs(fenced) do
  redis.call('INCR', KEYS[1 + owner])
  redis.call('PEXPIRE', KEYS[1 + owner], ARGV[4])
end
local broadcast = KEYS[2 + owners]
if broadcast and #moved > 0 then
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('XADD', broadcast, '*', 'type', 'operator.replayed', 'source', ARGV[2], 'time', now, 'data',
    cmsgpack.pack({ run = ARGV[1], by = ARGV[2], from = 'pending', stream = stream, to = stream,
      count = #moved, entries = moved }))
end
return answer
