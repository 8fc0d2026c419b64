-- Does one step of a repair: publishes entries again, and notes how far the repair is in their stream.
--
-- Atomically, and only while nobody has a newer right to the repair and it stands where the caller thinks: each entry that
-- is still as the caller saw it is replayed (`move_letters`, `move_held`, `copy_entries`), what was moved is told as
-- `operator.replayed`, counts and position move on. Repeating a call changes nothing more. Without a position the step only
-- takes the right, and notes where the stream ends: what the repair itself adds behind that is not met again.
--
-- KEYS[1]  the stream
-- KEYS[2]  how far the repair is in that stream: a hash, in its slot
-- KEYS[3]  the events stream that they go to
-- KEYS[4..] the claim counters of the owners of pending entries, or the marker of each entry of a range; then the broadcast,
--          unless it lies in another slot
-- ARGV[1]  the repair
-- ARGV[2]  who asked for it
-- ARGV[3]  the fence of the right to it
-- ARGV[4]  the position before this step, '' at the beginning
-- ARGV[5]  the position after it, or ''
-- ARGV[6]  how long the hash outlives its last change, in milliseconds
-- ARGV[7]  the number of reasons for which entries are left alone, then for each: the reason, how many
-- ARGV[..] 'dead', then for each entry: its id, the number of words, the names and values of the event's fields; or
--          'pending', the group, how long a claim counter lives, what `move_held` takes; or
--          'range', how long a marker lives, 1 to copy again what another run copied, what `copy_entries` takes
-- Returns  {state, error, position, replayed, gone, left, the stream's end, for each entry of this call its id as a new
--          event, '' for one that was gone}. State 1: done, or done before; 0: it stands elsewhere; 2: somebody else has the
--          right by now. After an error (empty: none) the position is the one before.
-- Cost     O(k log n) for k entries and n pending
local stream, hash, after = KEYS[1], KEYS[2], ARGV[5]
local function answer(state, why, ids)
  local is = redis.call('HMGET', hash, 'at', 'replayed', 'gone', 'left', 'end')
  return { state, why, is[1] or '', tonumber(is[2] or 0), tonumber(is[3] or 0), tonumber(is[4] or 0), is[5] or '',
    ids or {} }
end
local is = redis.call('HMGET', hash, 'fence', 'at', 'end')
local fence, at = tonumber(is[1] or 0), is[2] or ''
if fence > tonumber(ARGV[3]) then return answer(2, '') end
if fence < tonumber(ARGV[3]) then
  redis.call('HSET', hash, 'fence', ARGV[3])
  redis.call('PEXPIRE', hash, ARGV[6])
end
local entries = 8 + 2 * tonumber(ARGV[7])
local from = ARGV[entries]
if after == '' and not is[3] and from ~= 'dead' and redis.call('TYPE', stream).ok == 'stream' then
  local info = redis.call('XINFO', 'STREAM', stream)
  for field = 1, #info, 2 do
    if info[field] == 'last-generated-id' then redis.call('HSET', hash, 'end', info[field + 1]) end
  end
end
if after == '' or at == after then return answer(1, '') end
if at ~= ARGV[4] then return answer(0, '') end

local done, moved, others = nil, nil, 0
if from == 'pending' then
  done, moved = move_held(stream, ARGV[entries + 1], ARGV[entries + 2], 3, entries + 3)
  others = tonumber(ARGV[entries + 3])
elseif from == 'range' then
  done, moved = copy_entries(stream, ARGV[1], ARGV[entries + 1], ARGV[entries + 2] == '1', 3, entries + 3)
  others = tonumber(ARGV[entries + 3])
else
  done, moved = move_letters(stream, KEYS[3], entries + 1)
end
tell_moved(KEYS[4 + others], ARGV[1], ARGV[2], from, stream, KEYS[3], moved)
if #moved > 0 then redis.call('HINCRBY', hash, 'replayed', #moved) end
if done[1] == '' then
  local gone = #done - 1 - #moved
  if gone > 0 then redis.call('HINCRBY', hash, 'gone', gone) end
  for place = 8, entries - 1, 2 do
    local why, count = ARGV[place], ARGV[place + 1]
    redis.call('HINCRBY', hash, 'left', count)
    -- What is one reason too many is counted with others.
    local field = 'left:' .. why
    if redis.call('HLEN', hash) > 40 and not redis.call('HGET', hash, field) then field = 'left:...' end
    redis.call('HINCRBY', hash, field, count)
  end
  redis.call('HSET', hash, 'at', after)
end
redis.call('PEXPIRE', hash, ARGV[6])
return answer(1, table.remove(done, 1), done)
