-- Moves a consumer group of a stream to another place, and tells so.
--
-- Atomically with the fact `operator.group_reset`. A group goes back only to where nothing behind is pending: what is
-- delivered again while somebody holds it would be run by two. Repeating a call changes nothing more.
--
-- KEYS[1]  the stream
-- KEYS[2]  the broadcast, unless it lies in another slot
-- ARGV[1]  the run that the call belongs to
-- ARGV[2]  who does it
-- ARGV[3]  the group
-- ARGV[4]  the last entry that counts as delivered
-- ARGV[5]  the id that follows it
-- ARGV[6]  what was delivered last when it was decided: the group stays if that is different now
-- Returns  {what was delivered last, the first pending entry behind the new place if it is held by that, whether it is
--          there}; nil if there is no such group
-- Cost     O(groups + log pending entries)
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local delivered
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local of = {}
  for i = 1, #group, 2 do of[group[i]] = group[i + 1] end
  if of.name == ARGV[3] then delivered = of['last-delivered-id'] end
end
if not delivered then return false end
if delivered ~= ARGV[6] and delivered ~= ARGV[4] then return { delivered, '', 0 } end
local held = redis.call('XPENDING', KEYS[1], ARGV[3], ARGV[5], '+', 1)
if #held > 0 then return { delivered, held[1][1], 0 } end
redis.call('XGROUP', 'SETID', KEYS[1], ARGV[3], ARGV[4])
if KEYS[2] and delivered ~= ARGV[4] then
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('XADD', KEYS[2], '*', 'type', 'operator.group_reset', 'source', ARGV[2], 'time', now, 'data',
    cmsgpack.pack({ run = ARGV[1], by = ARGV[2], stream = KEYS[1], group = ARGV[3], from = delivered,
      to = ARGV[4] }))
end
return { delivered, '', 1 }
