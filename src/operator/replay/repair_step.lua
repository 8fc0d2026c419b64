-- Does one step of a repair: publishes dead letters again, and notes how far the repair is among them.
--
-- Atomically, and only while nobody has a newer right to the repair and it stands where the caller thinks: each that is
-- still a dead letter enters its stream and goes, what was moved is told as `operator.replayed`, counts and position
-- move on. Repeating a call changes nothing more. Without a position the step only takes the right.
--
-- KEYS[1]  the dead-letter stream
-- KEYS[2]  how far the repair is in that stream: a hash, in its slot
-- KEYS[3]  the events stream
-- KEYS[4]  the broadcast, unless it lies in another slot
-- ARGV[1]  the repair
-- ARGV[2]  who asked for it
-- ARGV[3]  the fence of the right to it
-- ARGV[4]  the position before this step, '' at the beginning
-- ARGV[5]  the position after it, or ''
-- ARGV[6]  how long the hash outlives its last change, in milliseconds
-- ARGV[7]  the number of reasons for which letters are left alone, then for each: the reason, how many
-- ARGV[..] for each entry: its id, the number of words, the names and values of the event's fields
-- Returns  {state, error, position, replayed, gone, left, the ids that were moved now}. State 1: done, or done before; 0: it stands elsewhere; 2:
--          somebody else has the right by now. After an error (empty: none) the position is the one before.
-- Cost     O(entries)
local dead, hash, after = KEYS[1], KEYS[2], ARGV[5]
local function answer(state, why, moved)
  local is = redis.call('HMGET', hash, 'at', 'replayed', 'gone', 'left')
  return { state, why, is[1] or '', tonumber(is[2] or 0), tonumber(is[3] or 0), tonumber(is[4] or 0),
    moved or {} }
end
local is = redis.call('HMGET', hash, 'fence', 'at')
local fence, at = tonumber(is[1] or 0), is[2] or ''
if fence > tonumber(ARGV[3]) then return answer(2, '') end
if fence < tonumber(ARGV[3]) then
  redis.call('HSET', hash, 'fence', ARGV[3])
  redis.call('PEXPIRE', hash, ARGV[6])
end
if after == '' or at == after then return answer(1, '') end
if at ~= ARGV[4] then return answer(0, '') end

local reasons = tonumber(ARGV[7])
local entries = 8 + 2 * reasons
local done, moved = move_letters(dead, KEYS[3], entries)
tell_moved(KEYS[4], ARGV[1], ARGV[2], dead, KEYS[3], moved)
if #moved > 0 then redis.call('HINCRBY', hash, 'replayed', #moved) end
if done[1] == '' then
  local gone = #done - 1 - #moved
  if gone > 0 then redis.call('HINCRBY', hash, 'gone', gone) end
  for reason = 0, reasons - 1 do
    local why, count = ARGV[8 + 2 * reason], ARGV[9 + 2 * reason]
    redis.call('HINCRBY', hash, 'left', count)
    -- What is one reason too many is counted with others.
    local field = 'left:' .. why
    if redis.call('HLEN', hash) > 40 and redis.call('HEXISTS', hash, field) == 0 then field = 'left:...' end
    redis.call('HINCRBY', hash, field, count)
  end
  redis.call('HSET', hash, 'at', after)
end
redis.call('PEXPIRE', hash, ARGV[6])
return answer(1, done[1], moved)
