#!lua flags=no-writes
-- Counts, for each event type, the active instances that have a handler for it.
--
-- KEYS  1 capabilities  2 active
-- ARGV  1 a domain: only its types; or ''  2 begin after this type; or ''  3 about how many look-ups
-- Returns {after, {type, instances, …}} in the order of the types; a type that only expired
--       instances have is left out. after: call again with it for the rest; '': there is none.
-- Cost  O((types + types * expired instances not swept yet) * log n), within ARGV[3] or one type.
local domain, after, left = ARGV[1], ARGV[2], tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local expired = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now))
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
  for _, id in ipairs(expired) do
    if redis.call('ZSCORE', KEYS[1], after .. ' ' .. id) then count = count - 1 end
  end
  if count > 0 then
    found[#found + 1] = after
    found[#found + 1] = count
  end
  left = left - 2 - #expired
end
return {after, found}
