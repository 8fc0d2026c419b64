-- Weighs entries of one type, in their order: each may begin, or is parked.
--
-- Atomically, for each entry: if it is still pending with this consumer and delivery count, and is still in its stream.
-- It is parked where it is paused, and where an event of its subject that came before it is parked, or was released and
-- is not begun: so the order of a subject holds however often it is paused. What is parked leaves the stream in the
-- same step: acknowledged here, kept there, under the place that it had first. What may begin stays pending.
--
-- KEYS  1 the stream  2 what is parked of the type  3 the types of which something is
-- ARGV  1 the group  2 the consumer  3 the type  4.. for each entry: its id, its delivery count, its subject or '',
--       how it is paused ('t': its type or domain; 's': its subject; 'n': not; 'a': not, and it is not to be parked,
--       since somebody waits for its answer), the event as a member of a delay queue
-- Returns for each entry: 0 not the caller's any more; 1 parked; 2 it may begin; 3 it would be parked. Called again, what was parked is not
--       the caller's any more. Fails, with what is left neither parked nor begun, if the server takes no writes now.
-- Cost  O(log n) for each entry, of n parked and pending
local stream, parked, kinds = KEYS[1], KEYS[2], KEYS[3]
local group, me, kind = ARGV[1], ARGV[2], ARGV[3]
local HEAL = 2 -- released ones that an entry finds done with, at the most

-- Whether an event of the line with an earlier place waits.
local function is_behind(line, place)
  for _ = 0, HEAL do
    local ahead = first_from(parked, 'o' .. line)
    if not ahead or string.sub(ahead, 2 + LINE, 1 + LINE + PLACE) >= place then return false end
    local entry = string.sub(ahead, 2 + LINE + PLACE)
    if entry == '' or not is_settled(stream, group, entry) then return true end
    -- It ended without being weighed: its deadline passed, or somebody deleted it.
    redis.call('ZREM', parked, ahead, 'r' .. entry .. string.sub(ahead, 2, 1 + LINE + PLACE))
  end
  return true
end

local function weigh(id, count, subject, how, event)
  local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
  if not pending or pending[2] ~= me or pending[4] ~= tonumber(count) then return 0 end
  local entry = padded(id)
  local line = subject ~= '' and redis.sha1hex(subject) or NO_LINE
  local place = entry
  local back = subject ~= '' and first_from(parked, 'r' .. entry) or nil
  if back then place = string.sub(back, 2 + PLACE + LINE) end
  if (how == 'n' or how == 'a') and subject ~= '' and is_behind(line, place) then
    if how == 'a' then return 3 end
    how = 't'
  end
  if how == 'a' then how = 'n' end
  if how == 'n' then
    -- Its place is known until it is done with: it may be paused once more before it begins.
    if back then redis.call('ZREM', parked, 'o' .. line .. place .. entry) end
    return 2
  end
  -- Whether the server takes writes now (memory, replicas): the stream is there, so this sets nothing.
  local able = redis.pcall('SET', stream, '', 'NX')
  if type(able) == 'table' and able.err then return able end
  -- One that was deleted from its stream is given to nobody.
  if not redis.call('XCLAIM', stream, group, me, 0, id, 'JUSTID')[1] then return 0 end
  local member = how == 's' and 's' .. line .. place .. event or 't' .. place .. line .. event
  if subject == '' then
    redis.call('ZADD', parked, 0, member)
  else
    redis.call('ZADD', parked, 0, member, 0, 'o' .. line .. place)
  end
  if back then redis.call('ZREM', parked, back, 'o' .. line .. place .. entry) end
  redis.call('HSET', kinds, kind, 1)
  redis.call('XACK', stream, group, id)
  return 1
end

local weighed = {}
for at = 4, #ARGV, 5 do
  local one = weigh(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4])
  if type(one) == 'table' then return one end
  weighed[#weighed + 1] = one
end
return weighed
