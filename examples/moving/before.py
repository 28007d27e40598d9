"""A travel agent: it plans step by step, and books after it has answered."""

import asyncio
import os

from bedrock_agentcore.runtime import BedrockAgentCoreApp

app = BedrockAgentCoreApp()
bookings = set()


@app.async_task
async def book(city):
    """Go on after the answer; ``/ping`` says ``HealthyBusy`` meanwhile."""
    await asyncio.sleep(1)
    app.logger.info("Booked a trip to %s", city)


async def plan(city):
    """Tell each step as soon as it is planned."""
    for step in ("a train", "a room", "a museum"):
        await asyncio.sleep(0.05)
        yield {"step": f"{step} in {city}"}


@app.entrypoint
async def agent(payload, context):
    """Plan a trip, or book it."""
    city = payload["city"]
    if payload.get("plan"):
        return plan(city)
    booking = asyncio.create_task(book(city))
    bookings.add(booking)
    booking.add_done_callback(bookings.discard)
    return {"booking": city, "session": context.session_id}


if __name__ == "__main__":
    app.run(port=int(os.environ.get("PORT", "8080")))
