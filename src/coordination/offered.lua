#!lua flags=no-writes
-- Counts, for each event type, the active instances that have a handler for it.
--
-- KEYS  1 capabilities  2 active
-- ARGV  1 a domain: only its types; or ''  2 begin after this type; or ''  3 about how many look-ups
-- Returns {after, {type, instances, …}} in the order of the types; a type that only expired
--       instances have is left out. after: call again with it for the rest; '': nothing is left out.
-- Cost  O(types * log n + expired instances looked at), within ARGV[3] or one type. So that it is bounded,
--       the instances that expired and were not swept yet are left out of a count only where they, or
--       those with a handler of the type, are at most 200.
local domain, after, left = ARGV[1], ARGV[2], tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local FEW = 200
local expired = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', 0, FEW + 1)
-- Members are 'type id': '!' follows the space, '/' the dot.
local from, to = '-', '+'
if domain ~= '' then from, to = '[' .. domain .. '.', '(' .. domain .. '/' end
if after ~= '' then from = '(' .. after .. '!' end
local found = {}
while left > 0 do
  local first = redis.call('ZRANGEBYLEX', KEYS[1], from, to, 'LIMIT', 0, 1)[1]
  if not first then return {'', found} end
  after = string.match(first, '^%S+')
  from = '(' .. after .. '!'
  local count = redis.call('ZLEXCOUNT', KEYS[1], '[' .. after .. ' ', from)
  if #expired > 0 and (#expired <= FEW or count <= FEW) then
    local looked, at, late = {}, KEYS[2], 0
    if #expired <= FEW then
      at = KEYS[1]
      for i, id in ipairs(expired) do looked[i] = after .. ' ' .. id end
    else
      looked = redis.call('ZRANGEBYLEX', KEYS[1], '[' .. after .. ' ', from, 'LIMIT', 0, FEW)
      for i, member in ipairs(looked) do looked[i] = string.sub(member, #after + 2) end
    end
    for _, score in ipairs(redis.call('ZMSCORE', at, unpack(looked))) do
      if score and (at == KEYS[1] or tonumber(score) <= now) then late = late + 1 end
    end
    count, left = count - late, left - #looked
  end
  if count > 0 then
    found[#found + 1] = after
    found[#found + 1] = count
  end
  left = left - 2
end
return {after, found}
