-- How many of the active instances are suspect, without external ones. It is put before the scripts that
-- count. It has functions only.
--
-- Cost  O(log n + suspects looked at). Of more than 500 the first ones tell what share of all counts.
local function count_suspects(suspects, active, external, now)
  local MOST = 500
  local after = '(' .. string.format('%.0f', now)
  local suspected = redis.call('ZRANGEBYSCORE', suspects, after, '+inf', 'LIMIT', 0, MOST)
  if #suspected == 0 then return 0 end
  local count = 0
  local expiries = redis.call('ZMSCORE', active, unpack(suspected))
  local outside = redis.call('ZMSCORE', external, unpack(suspected))
  for i = 1, #suspected do
    if tonumber(expiries[i] or 0) > now and not outside[i] then count = count + 1 end
  end
  if #suspected < MOST then return count end
  return math.floor(count * redis.call('ZCOUNT', suspects, after, '+inf') / MOST)
end
