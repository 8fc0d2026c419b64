#!lua flags=no-writes
-- Finds an active instance that reads the events of a type in a group and has a handler for it.
--
-- KEYS  1 active  2 readers of the type in that group  3 readers of another type, which it must be among
--       too, if that is needed
-- ARGV  1 an instance that it must not be  2 where to begin among them, 0 to 1  3 how many are looked at
--       at the most
-- Returns {id, late}. id '': none was found; late = 1: one that could have it missed its pulses and was
--       not declared lost yet, or not all were looked at.
-- Cost  O(log n + instances looked at).
local not_it, most = ARGV[1], tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local these, others = KEYS[2], KEYS[3]
local count = redis.call('ZCARD', these)
if others then
  local of_others = redis.call('ZCARD', others)
  if of_others < count then these, others, count = others, these, of_others end
end
if count == 0 then return { '', 0 } end
local from = math.min(math.floor(count * ARGV[2]), count - 1)
local ids = redis.call('ZRANGE', these, from, from + most - 1)
if #ids < most and from > 0 then
  for _, id in ipairs(redis.call('ZRANGE', these, 0, math.min(from, most - #ids) - 1)) do
    ids[#ids + 1] = id
  end
end
local expiries = redis.call('ZMSCORE', KEYS[1], unpack(ids))
local among = others and redis.call('ZMSCORE', others, unpack(ids))
local late = count > most and 1 or 0
for i, id in ipairs(ids) do
  if id ~= not_it and expiries[i] and (not among or among[i]) then
    if tonumber(expiries[i]) > now then return { id, 0 } end
    late = 1
  end
end
return { '', late }
