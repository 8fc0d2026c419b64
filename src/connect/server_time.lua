-- The server's time as TIME tells it: seconds and microseconds. `script.rs` puts this before each script
-- that asks for the time.
--
-- A few servers have no TIME, not even for scripts. There it is read off a key that ends at a fixed
-- moment, 2100-01-01: the rest of its life tells how late it is now, by the server's clock, to the
-- millisecond. The key is called `clock` and lies beside the script's first key, in the same slot; whoever
-- may write makes it. It is the only key that is not declared, and touched only where TIME is missing.
-- Cost: O(1).
local function server_time()
  local told = redis.pcall('TIME')
  if not told.err then
    return told
  end
  local ends = 4102444800000
  local key = (string.match(KEYS[1], '^{[^}]*}') or string.match(KEYS[1], '^[^:]*')) .. ':clock'
  local left = redis.pcall('PTTL', key)
  if type(left) == 'number' and left < 0 then
    redis.pcall('SET', key, '', 'PXAT', string.format('%.0f', ends))
    left = redis.pcall('PTTL', key)
  end
  if type(left) ~= 'number' or left < 0 then
    error({ err = 'ERR the server tells no time: it has no TIME, and no worker was there yet to make ' .. key })
  end
  local now = ends - left
  return { math.floor(now / 1000), now % 1000 * 1000 }
end
